package io.streambank.flink;

import java.nio.charset.StandardCharsets;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.flink.types.Row;

/**
 * Writes Row(topic String, shard int, value byte[]) to the topic's partition of the same number as the shard, with the
 * shard in decimal ASCII as the key. Readers drop repeated frames per shard, so a shard must never leave its partition.
 *
 * <p>A row without topic is an alarm: its value is the text of an error after which the job must not restart. Python
 * cannot raise such an error itself, so it sends one, and nothing after it.
 */
public final class FrameSerializationSchema implements KafkaRecordSerializationSchema<Row> {
    private static final long serialVersionUID = 1L;

    @Override
    public ProducerRecord<byte[], byte[]> serialize(Row row, KafkaSinkContext context, Long timestamp) {
        String topic = (String) row.getField(0);
        if (topic.isEmpty()) {
            throw new KernelStoppedException(new String((byte[]) row.getField(2), StandardCharsets.UTF_8));
        }
        int shard = ((Number) row.getField(1)).intValue();
        byte[] key = Integer.toString(shard).getBytes(StandardCharsets.US_ASCII);
        return new ProducerRecord<>(topic, shard, key, (byte[]) row.getField(2));
    }
}
