import exchange.core2.collections.objpool.ObjectsPool;
import exchange.core2.core.common.CoreSymbolSpecification;
import exchange.core2.core.common.IOrder;
import exchange.core2.core.common.MatcherEventType;
import exchange.core2.core.common.MatcherTradeEvent;
import exchange.core2.core.common.OrderAction;
import exchange.core2.core.common.OrderType;
import exchange.core2.core.common.SymbolType;
import exchange.core2.core.common.cmd.CommandResultCode;
import exchange.core2.core.common.cmd.OrderCommand;
import exchange.core2.core.common.config.LoggingConfiguration;
import exchange.core2.core.orderbook.IOrderBook;
import exchange.core2.core.orderbook.OrderBookDirectImpl;
import exchange.core2.core.orderbook.OrderBookEventsHelper;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;

/**
 * Feeds a stream of bench/matching_streams.py to exchange-core's order book and measures the CPU time of that.
 *
 * <p>Arguments: a file of rows of little-endian int64 (kind, time, id, side, price, quantity, time in force, ...), the
 * number of columns, how many of the rows only build the book up, and the number of measured passes, each with a fresh
 * book. Prints a line of JSON: CPU seconds of each pass, trades, live orders, and the SHA-256 of all reports in the form
 * in which the published answers have it, from one more pass.
 *
 * <p>The book is called directly: no risk engine, no ring buffer, no reports but its own trade events, which are
 * counted. An amendment of a quantity, which exchange-core has not, cancels the order and enters it again, which is
 * what the published streams mean by it; an amendment of the price alone is its move.
 */
public final class ExchangeCoreBook {
    private static final int NEW = 0;
    private static final int CANCEL = 1;
    private static final int IOC = 3;

    /** Cancels of the streams do not tell the owner, whom this book asks for: all orders have the same one. */
    private static final long OWNER = 1;

    private final long[] rows;
    private final int columns;
    private final OrderCommand command = new OrderCommand();

    private ExchangeCoreBook(long[] rows, int columns) {
        this.rows = rows;
        this.columns = columns;
    }

    public static void main(String[] arguments) throws IOException, NoSuchAlgorithmException {
        int columns = Integer.parseInt(arguments[1]);
        int building = Integer.parseInt(arguments[2]);
        int passes = Integer.parseInt(arguments[3]);
        ExchangeCoreBook bench = new ExchangeCoreBook(read(Path.of(arguments[0])), columns);
        int count = bench.rows.length / columns;
        ThreadMXBean threads = ManagementFactory.getThreadMXBean();
        StringBuilder seconds = new StringBuilder();
        long trades = 0;
        int live = 0;
        for (int pass = 0; pass < passes; pass++) {
            IOrderBook book = newBook();
            bench.apply(book, 0, building);
            System.gc();
            long began = threads.getCurrentThreadCpuTime();
            trades = bench.apply(book, building, count);
            long taken = threads.getCurrentThreadCpuTime() - began;
            seconds.append(pass == 0 ? "" : ", ").append(taken / 1e9);
            live = book.getOrdersNum(OrderAction.BID) + book.getOrdersNum(OrderAction.ASK);
        }
        System.out.printf(
                "{\"cpu_seconds\": [%s], \"messages\": %d, \"trades\": %d, \"live_orders\": %d, \"sha256\": \"%s\"}%n",
                seconds, count - building, trades, live, bench.reportHash());
    }

    private static long[] read(Path path) throws IOException {
        try (FileChannel file = FileChannel.open(path)) {
            ByteBuffer bytes = file.map(FileChannel.MapMode.READ_ONLY, 0, file.size());
            long[] rows = new long[(int) (file.size() / Long.BYTES)];
            bytes.order(ByteOrder.LITTLE_ENDIAN).asLongBuffer().get(rows);
            return rows;
        }
    }

    private static IOrderBook newBook() {
        // a future, because the book of a currency pair refuses to move a bid above the price it reserved
        CoreSymbolSpecification symbol = CoreSymbolSpecification.builder()
                .symbolId(1).type(SymbolType.FUTURES_CONTRACT).baseScaleK(1).quoteScaleK(1).build();
        // as many objects as exchange-core's own matching engine keeps for reuse
        Map<Integer, Integer> kept = new HashMap<>();
        kept.put(ObjectsPool.DIRECT_ORDER, 1 << 20);
        kept.put(ObjectsPool.DIRECT_BUCKET, 1 << 16);
        kept.put(ObjectsPool.ART_NODE_4, 1 << 15);
        kept.put(ObjectsPool.ART_NODE_16, 1 << 14);
        kept.put(ObjectsPool.ART_NODE_48, 1 << 13);
        kept.put(ObjectsPool.ART_NODE_256, 1 << 12);
        return new OrderBookDirectImpl(
                symbol, new ObjectsPool(kept), OrderBookEventsHelper.NON_POOLED_EVENTS_HELPER,
                LoggingConfiguration.DEFAULT);
    }

    /** Applies the messages from {@code first} up to {@code end}; returns the number of trades. */
    private long apply(IOrderBook book, int first, int end) {
        long trades = 0;
        for (int message = first; message < end; message++) {
            step(book, message);
            for (MatcherTradeEvent event = command.matcherEvent; event != null; event = event.nextEvent) {
                if (event.eventType == MatcherEventType.TRADE) {
                    trades++;
                }
            }
        }
        return trades;
    }

    /** Applies one message; false if it is about an order that is not there. */
    private boolean step(IOrderBook book, int message) {
        int row = message * columns;
        long kind = rows[row];
        command.orderId = rows[row + 2];
        command.uid = OWNER;
        command.matcherEvent = null;
        if (kind == NEW) {
            enter(book, row);
            return true;
        }
        if (kind == CANCEL) {
            return book.cancelOrder(command) == CommandResultCode.SUCCESS;
        }
        if (rows[row + 5] == 0) {
            command.price = rows[row + 4];
            return book.moveOrder(command) == CommandResultCode.SUCCESS;
        }
        if (book.cancelOrder(command) != CommandResultCode.SUCCESS) {
            return false;
        }
        command.matcherEvent = null;
        enter(book, row);
        return true;
    }

    private void enter(IOrderBook book, int row) {
        command.action = rows[row + 3] == 0 ? OrderAction.BID : OrderAction.ASK;
        command.price = rows[row + 4];
        command.reserveBidPrice = command.price;
        command.size = rows[row + 5];
        command.orderType = rows[row + 6] == IOC ? OrderType.IOC : OrderType.GTC;
        command.timestamp = rows[row + 1];
        book.newOrder(command);
    }

    /** The SHA-256 of a report per line, sorted by message and type, see bench/matching_streams.py. */
    private String reportHash() throws NoSuchAlgorithmException {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        IOrderBook book = newBook();
        StringBuilder lines = new StringBuilder();
        int count = rows.length / columns;
        for (int message = 0; message < count; message++) {
            report(book, message, lines);
            if (lines.length() > 1 << 16 || message == count - 1) {
                if (message == count - 1) {
                    lines.setLength(lines.length() - 1);
                }
                digest.update(lines.toString().getBytes(StandardCharsets.US_ASCII));
                lines.setLength(0);
            }
        }
        return HexFormat.of().formatHex(digest.digest());
    }

    private void report(IOrderBook book, int message, StringBuilder lines) {
        int row = message * columns;
        long kind = rows[row];
        long id = rows[row + 2];
        IOrder order = kind == NEW ? null : book.getOrderById(id);
        if (kind != NEW && order == null) {
            step(book, message);
            line(lines, kind == CANCEL ? 4 : 5, message, id);
            return;
        }
        long side = kind == NEW ? rows[row + 3] : order.getAction() == OrderAction.BID ? 0 : 1;
        long price = kind == CANCEL ? order.getPrice() : rows[row + 4];
        long quantity = rows[row + 5] != 0 || kind == CANCEL ? rows[row + 5] : order.getSize() - order.getFilled();
        step(book, message);
        if (kind == CANCEL) {
            line(lines, 2, message, side, id, price);
            return;
        }
        if (kind == NEW) {
            line(lines, 0, message, side, id, price, quantity);
        }
        boolean isRestCanceled = false;
        for (MatcherTradeEvent event = command.matcherEvent; event != null; event = event.nextEvent) {
            if (event.eventType == MatcherEventType.TRADE) {
                line(lines, 1, message, event.price, event.size, event.matchedOrderId, id);
            } else if (event.eventType == MatcherEventType.REJECT) {
                isRestCanceled = true;
            }
        }
        if (isRestCanceled) {
            line(lines, 2, message, side, id, price);
        }
        if (kind != NEW) {
            line(lines, 3, message, side, id, price, quantity);
        }
    }

    private static void line(StringBuilder lines, long... numbers) {
        for (int position = 0; position < numbers.length; position++) {
            lines.append(position == 0 ? "" : ",").append(numbers[position]);
        }
        lines.append('\n');
    }
}
