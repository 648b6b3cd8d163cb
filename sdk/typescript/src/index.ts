/** The client of a shopping cart that reserves what is put in it. */

import { createClient, type Client, type Transport } from "@connectrpc/connect";
import { CartService } from "./gen/cartgrpc/v1/cart_service_pb.js";
import { type CallOptions, withServiceConfig } from "./transport.js";

export type CartClient = Client<typeof CartService>;

/** Returns a client of CartService on a transport, such as one of `cart-grpc/node` or of `@connectrpc/connect-web`. */
export function createCartClient(transport: Transport, options: CallOptions = {}): CartClient {
  return createClient(CartService, withServiceConfig(transport, options));
}

export { Code, ConnectError } from "@connectrpc/connect";
export { serviceConfig } from "./config.js";
export { errorDetails, type ErrorDetails } from "./errors.js";
export { pages } from "./pages.js";
export { withServiceConfig, type CallOptions } from "./transport.js";
export { watchCart, type WatchOptions } from "./watch.js";
export * from "./gen/cartgrpc/v1/cart_pb.js";
export * from "./gen/cartgrpc/v1/cart_service_pb.js";
