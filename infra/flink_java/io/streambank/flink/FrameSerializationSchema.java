package io.streambank.flink;

import java.nio.charset.StandardCharsets;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.flink.types.Row;

/**
 * Writes Row(topic String, shard int, value byte[]) to the topic's partition of the same number as the shard, with the
 * shard in decimal ASCII as the key. Readers drop repeated frames per shard, so a shard must never leave its partition.
 */
public final class FrameSerializationSchema implements KafkaRecordSerializationSchema<Row> {
    private static final long serialVersionUID = 1L;

    @Override
    public ProducerRecord<byte[], byte[]> serialize(Row row, KafkaSinkContext context, Long timestamp) {
        String topic = (String) row.getField(0);
        int shard = ((Number) row.getField(1)).intValue();
        byte[] key = Integer.toString(shard).getBytes(StandardCharsets.US_ASCII);
        return new ProducerRecord<>(topic, shard, key, (byte[]) row.getField(2));
    }
}
