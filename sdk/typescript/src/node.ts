/** Connections from Node.js. */

import type { SecureClientSessionOptions } from "node:http2";
import { Code, ConnectError, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";

export interface NodeOptions {
  /** Called for each attempt of a call; its result is sent as `authorization: Bearer`. */
  token?: () => string | Promise<string>;
  /** Options of TLS, such as `ca`, `cert` and `key`. */
  tls?: SecureClientSessionOptions;
  interceptors?: Interceptor[];
}

export interface NodeTransport extends Transport {
  /** Closes the connections and ends their calls. */
  close(): void;
}

/**
 * Returns a transport over gRPC to a URL such as `http://127.0.0.1:50051`. A connection carries 100 calls at a time and
 * another one 50 watches, so that watches do not take the places of calls.
 */
export function createNodeTransport(baseUrl: string, options: NodeOptions = {}): NodeTransport {
  const interceptors = [...(options.interceptors ?? []), ...(options.token ? [authorize(options.token)] : [])];
  const open = () => {
    // Find a dead peer within 30 s while a call runs. The server allows a ping every 10 s.
    const session = new Http2SessionManager(baseUrl, { pingIntervalMs: 20_000, pingTimeoutMs: 10_000 }, options.tls);
    return { session, transport: createGrpcTransport({ baseUrl, interceptors, sessionManager: session }) };
  };
  const [calls, watches] = [open(), open()];
  return {
    unary: (...call) => calls.transport.unary(...call),
    stream: (...call) => watches.transport.stream(...call),
    close() {
      for (const { session } of [calls, watches]) {
        session.abort(new ConnectError("the client is closed", Code.Canceled));
      }
    },
  };
}

function authorize(token: () => string | Promise<string>): Interceptor {
  return (next) => async (request) => {
    request.header.set("authorization", `Bearer ${await token()}`);
    return next(request);
  };
}
