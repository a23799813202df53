package io.streambank.flink;

import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Header;
import org.apache.flink.types.Row;
import org.apache.flink.util.Collector;

/**
 * Gives a Kafka record as Row(key int, Row(partition int, offset long, value byte[], signature byte[])).
 *
 * <p>PyFlink's own schemas show the value only, and a job needs the partition to find a record's shard, the offset to
 * name a record that it cannot read, and the header with the producer's signature. The key by which Flink spreads the shards is looked up here too:
 * PyFlink's key_by would carry every frame into Python and back only to add it.
 *
 * <p>Nothing is decoded here: a malformed value reaches the job, which sets it aside. A record without a value (a
 * tombstone) comes as an empty one, and so does the signature of a record without that header.
 */
public final class FrameDeserializationSchema implements KafkaRecordDeserializationSchema<Row> {
    private static final long serialVersionUID = 3L;
    private static final byte[] NO_VALUE = new byte[0];

    /** As in pipelines/signatures.py. */
    private static final String SIGNATURE_HEADER = "streambank-signature";

    private final int[] keys;

    /** @param keys the Flink key of each shard; a shard is the partition of the same number. */
    public FrameDeserializationSchema(int[] keys) {
        this.keys = keys.clone();
    }

    @Override
    public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<Row> out) {
        int partition = record.partition();
        if (partition >= keys.length) {
            throw new IllegalStateException(
                    "Topic " + record.topic() + " has a partition " + partition + ", but the catalogue says "
                            + keys.length + " shards; a topic's partition count must never change.");
        }
        byte[] value = record.value() == null ? NO_VALUE : record.value();
        Header header = record.headers().lastHeader(SIGNATURE_HEADER);
        byte[] signature = header == null || header.value() == null ? NO_VALUE : header.value();
        out.collect(Row.of(keys[partition], Row.of(partition, record.offset(), value, signature)));
    }

    @Override
    public TypeInformation<Row> getProducedType() {
        return Types.ROW_NAMED(
                new String[] {"key", "record"},
                Types.INT,
                Types.ROW_NAMED(
                        new String[] {"partition", "offset", "value", "signature"},
                        Types.INT,
                        Types.LONG,
                        PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO,
                        PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO));
    }
}
