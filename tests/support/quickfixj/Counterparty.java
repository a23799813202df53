import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import quickfix.Application;
import quickfix.FileStoreFactory;
import quickfix.Message;
import quickfix.Session;
import quickfix.SessionID;
import quickfix.SessionSettings;
import quickfix.Connector;
import quickfix.SocketAcceptor;
import quickfix.SocketInitiator;
import quickfix.DefaultMessageFactory;
import quickfix.field.MsgType;
import quickfix.field.Password;
import quickfix.field.TransactTime;
import quickfix.field.Username;
import java.time.LocalDateTime;
import java.time.ZoneOffset;

/**
 * A counterparty on QuickFIX/J: {@code Counterparty SETTINGS USERNAME PASSWORD}, an initiator, or an acceptor if the
 * settings say so, which then wants these credentials. It takes commands on stdin, one a line,
 * and writes what it hears to stdout, with {@code |} between fields: {@code app}, {@code admin}, {@code logon},
 * {@code logout}. Its sequence numbers and messages are in files, so that it can be killed.
 *
 * <ul>
 *   <li>{@code send TYPE 11=a|55=ACME|…} sends a message; TransactTime is set here;
 *   <li>{@code expect N} sets the next number that it expects, as if it had lost what came after;
 *   <li>{@code skip N} leaves N of its own numbers out, as if they had been lost on the way;
 *   <li>{@code logout}, {@code logon}, {@code test} (a TestRequest), {@code break} (the connection);
 *   <li>{@code echo WORD} says that all commands before it are done.
 * </ul>
 */
public final class Counterparty implements Application {
    private final String username;
    private final String password;

    private Counterparty(String username, String password) {
        this.username = username;
        this.password = password;
    }

    public static void main(String[] arguments) throws Exception {
        SessionSettings settings = new SessionSettings(arguments[0]);
        Counterparty application = new Counterparty(arguments[1], arguments[2]);
        boolean accepts = settings.getString("ConnectionType").equals("acceptor");
        FileStoreFactory stores = new FileStoreFactory(settings);
        DefaultMessageFactory messages = new DefaultMessageFactory();
        Connector connector = accepts
            ? new SocketAcceptor(application, stores, settings, messages)
            : new SocketInitiator(application, stores, settings, messages);
        connector.start();
        SessionID id = connector.getSessions().get(0);
        say("started", id);
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        for (String line; (line = commands.readLine()) != null;) {
            String[] words = line.split(" ", 3);
            Session session = Session.lookupSession(id);
            switch (words[0]) {
                case "send" -> send(id, words[1], words[2]);
                case "expect" -> session.setNextTargetMsgSeqNum(Integer.parseInt(words[1]));
                case "skip" -> session.setNextSenderMsgSeqNum(
                    session.getExpectedSenderNum() + Integer.parseInt(words[1]));
                case "logout" -> session.logout();
                case "logon" -> session.logon();
                case "echo" -> say("echo", words[1]);
                case "break" -> session.disconnect("as if the line were cut", false);
                case "test" -> session.generateTestRequest(words[1]);
                default -> throw new IllegalArgumentException(line);
            }
        }
        connector.stop(true);
    }

    private static void send(SessionID id, String type, String fields) throws Exception {
        Message message = new Message();
        message.getHeader().setString(MsgType.FIELD, type);
        if (!type.equals("j")) {
            message.setUtcTimeStamp(TransactTime.FIELD, LocalDateTime.now(ZoneOffset.UTC), true);
        }
        for (String field : fields.split("\\|")) {
            String[] parts = field.split("=", 2);
            int tag = Integer.parseInt(parts[0]);
            if (tag == 97) {
                message.getHeader().setString(tag, parts[1]);
            } else {
                message.setString(tag, parts[1]);
            }
        }
        Session.sendToTarget(message, id);
    }

    private static synchronized void say(String event, Object detail) {
        System.out.println(event + " " + detail.toString().replace('\u0001', '|'));
        System.out.flush();
    }

    @Override
    public void onCreate(SessionID id) {}

    @Override
    public void onLogon(SessionID id) {
        say("logon", id);
    }

    @Override
    public void onLogout(SessionID id) {
        say("logout", id);
    }

    @Override
    public void toAdmin(Message message, SessionID id) {
        try {
            boolean initiates = !username.isEmpty();
            if (initiates && message.getHeader().getString(MsgType.FIELD).equals(MsgType.LOGON)) {
                message.setString(Username.FIELD, username);
                message.setString(Password.FIELD, password);
            }
        } catch (quickfix.FieldNotFound error) {
            throw new IllegalStateException(error);
        }
        say("sent", message);
    }

    @Override
    public void fromAdmin(Message message, SessionID id) {
        say("admin", message);
    }

    @Override
    public void toApp(Message message, SessionID id) {
        say("sent", message);
    }

    @Override
    public void fromApp(Message message, SessionID id) {
        say("app", message);
    }
}
