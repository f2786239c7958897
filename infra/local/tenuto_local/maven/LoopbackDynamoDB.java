import java.lang.reflect.Field;
import java.util.Set;
import org.eclipse.jetty.http.HttpFields;
import org.eclipse.jetty.server.Connector;
import org.eclipse.jetty.server.Handler;
import org.eclipse.jetty.server.Request;
import org.eclipse.jetty.server.Response;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;
import org.eclipse.jetty.util.Callback;
import software.amazon.dynamodb.services.local.main.ServerRunner;
import software.amazon.dynamodb.services.local.server.DynamoDBProxyServer;

/**
 * Starts DynamoDB Local on 127.0.0.1 only; its own runner listens on every interface and has no option for it.
 *
 * <p>It checks no signature, so what a browser sends for a web page is refused here: a request that says which page it
 * comes from, and one under a name of the page's own server that was pointed at this machine.
 */
public final class LoopbackDynamoDB {
    private static final Set<String> NAMES = Set.of("127.0.0.1", "localhost");

    public static void main(String[] args) throws Exception {
        DynamoDBProxyServer proxy = ServerRunner.createServerFromCommandLineArgs(args);
        Field field = DynamoDBProxyServer.class.getDeclaredField("server");
        field.setAccessible(true);
        Server server = (Server) field.get(proxy);
        for (Connector connector : server.getConnectors()) {
            ((ServerConnector) connector).setHost("127.0.0.1");
        }
        server.setHandler(new OwnRequests(server.getHandler()));
        proxy.start();
        System.out.println("DynamoDB Local is listening");
        proxy.join();
    }

    private static final class OwnRequests extends Handler.Wrapper {
        OwnRequests(Handler inner) {
            super(inner);
        }

        @Override
        public boolean handle(Request request, Response response, Callback callback) throws Exception {
            HttpFields headers = request.getHeaders();
            String host = headers.get("Host");
            boolean page = headers.contains("Origin") || headers.contains("Sec-Fetch-Site");
            if (page || host == null || !NAMES.contains(host.replaceFirst(":\\d*$", ""))) {
                Response.writeError(request, response, callback, 403);
                return true;
            }
            return super.handle(request, response, callback);
        }
    }
}
