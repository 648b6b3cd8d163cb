/** Watching a cart through reconnections. */

import { equals } from "@bufbuild/protobuf";
import { Code, ConnectError, type Client } from "@connectrpc/connect";
import { type Cart, Cart_State, CartSchema } from "./gen/cartgrpc/v1/cart_pb.js";
import { CartService } from "./gen/cartgrpc/v1/cart_service_pb.js";
import { findDelay, sleep } from "./transport.js";

// The server sends a heartbeat every 30 s.
const SILENCE_MS = 90_000;
// A stream that lived for this long was good: attempts after it start with the shortest delay.
const GOOD_MS = 1_000;
const ENDED = [Cart_State.EXPIRED, Cart_State.DELETED, Cart_State.CHECKED_OUT, Cart_State.MERGED];

export interface WatchOptions {
  /** Ends the watch: it then throws a ConnectError with Code.Canceled. */
  signal?: AbortSignal;
  /** How long to try until there is a first state. 10,000 ms by default. */
  timeoutMs?: number;
}

/**
 * Yields the current state of a cart, then each newer one, until the cart has ended. States may be skipped. Connects
 * again after failures, as long as it takes. Throws a ConnectError if the server refuses, or if there is no first state
 * in time.
 */
export async function* watchCart(
  client: Client<typeof CartService>, name: string, options: WatchOptions = {},
): AsyncGenerator<Cart, void, undefined> {
  const firstDeadline = performance.now() + (options.timeoutMs ?? 10_000);
  let seen: Cart | undefined;
  for (let attempt = 0; ; attempt++) {
    const began = performance.now();
    let failure = new ConnectError("the stream ended before the cart did", Code.Unavailable);
    try {
      for await (const cart of states(client, name, options.signal, () => (seen ? SILENCE_MS : firstDeadline - performance.now()))) {
        if (isNews(cart, seen)) {
          seen = cart;
          yield cart;
          if (ENDED.includes(cart.state)) {
            return;
          }
        }
      }
    } catch (reason) {
      failure = ConnectError.from(reason);
    }
    if (performance.now() - began > GOOD_MS) {
      attempt = 0;
    }
    const delay = options.signal?.aborted ? undefined : findDelay(failure, attempt, CartService.method.watchCart);
    if (delay === undefined || (!seen && performance.now() + delay >= firstDeadline)) {
      throw failure;
    }
    await sleep(delay, options.signal);
  }
}

/** Yields the states that one stream carries. Ends it after `patience()` milliseconds without any message. */
async function* states(
  client: Client<typeof CartService>, name: string, signal: AbortSignal | undefined, patience: () => number,
): AsyncGenerator<Cart, void, undefined> {
  const stream = new AbortController();
  const stop = () => stream.abort(signal?.reason);
  signal?.addEventListener("abort", stop, { once: true });
  if (signal?.aborted) {
    stop();
  }
  let isSilent = false;
  const expire = () => {
    isSilent = true;
    stream.abort();
  };
  let timer = setTimeout(expire, patience());
  try {
    for await (const { content } of client.watchCart({ name }, { signal: stream.signal })) {
      clearTimeout(timer);
      if (content.case === "cart") {
        yield content.value;
      }
      timer = setTimeout(expire, patience());
    }
  } catch (reason) {
    throw isSilent ? new ConnectError("no message came in time", Code.Unavailable) : reason;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
    stream.abort();
  }
}

function isNews(cart: Cart, seen: Cart | undefined): boolean {
  if (!seen || seen.uid !== cart.uid) {
    return true;
  }
  // Equal revisions do not suffice: some changes that only time causes do not raise the revision.
  return cart.revision >= seen.revision && !equals(CartSchema, cart, seen);
}
