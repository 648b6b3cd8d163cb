/** Deadlines, repetitions and request_ids, for any transport. */

import { create, type DescMessage, type DescMethod, type DescMethodUnary, type MessageInitShape } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import { durationMs, type Duration } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Transport } from "@connectrpc/connect";
import { backoffMs, isRetryable, methodConfig, retryPolicy, toMs } from "./config.js";
import { errorDetails } from "./errors.js";

export interface CallOptions {
  /** How long a call may take with all its attempts, without its max_wait. 10,000 ms by default. */
  timeoutMs?: number;
}

/**
 * Returns a transport that gives each unary call a deadline, completes mutations with a request_id, and repeats calls
 * when that is safe.
 */
export function withServiceConfig(inner: Transport, options: CallOptions = {}): Transport {
  const limit = options.timeoutMs ?? 10_000;
  return {
    async unary(method, signal, timeoutMs, header, input, contextValues) {
      const [message, waitMs] = complete(method, input);
      const { timeout } = methodConfig(method);
      const most = timeout === undefined ? Infinity : toMs(timeout);
      const deadline = performance.now() + (timeoutMs ?? Math.min(limit + waitMs, Math.max(most, limit)));
      let failure: ConnectError | undefined;
      for (let attempt = 0; ; attempt++) {
        try {
          // gRPC's header takes whole milliseconds only.
          const left = Math.max(1, Math.ceil(deadline - performance.now()));
          return await inner.unary(method, signal, left, header, message, contextValues);
        } catch (reason) {
          const error = ConnectError.from(reason);
          const delay = signal?.aborted ? undefined : findDelay(error, attempt, method);
          if (delay === undefined || performance.now() + delay >= deadline) {
            // The last attempt may have had no time left. Then only the failure before it shows why.
            throw error.code === Code.DeadlineExceeded && failure ? failure : error;
          }
          failure = error;
          await sleep(delay, signal);
        }
      }
    },
    stream: (...call) => inner.stream(...call),
  };
}

/** Returns the milliseconds to wait before the next attempt, or undefined if there must be none. */
export function findDelay(error: ConnectError, attempt: number, method: DescMethod): number | undefined {
  const policy = retryPolicy(method);
  if (policy === undefined) {
    return undefined;
  }
  const { reason, retryAfterMs } = errorDetails(error);
  const repeats =
    isRetryable(policy, error.code) ||
    (error.code === Code.ResourceExhausted && retryAfterMs !== undefined) ||
    (error.code === Code.DeadlineExceeded && reason === "CALL_TIMEOUT") ||
    // A server that is stopping resets calls, and gives no reason.
    (error.code === Code.Canceled && reason === "");
  return repeats ? Math.min(retryAfterMs ?? 0, 60_000) + Math.random() * backoffMs(policy, attempt) : undefined;
}

/** Resolves after some time. Rejects when the signal is aborted. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new ConnectError("the call was cancelled", Code.Canceled, undefined, undefined, signal?.reason));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal?.aborted) {
      stop();
    }
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Returns the message, with a request_id if it has the field, and its max_wait in milliseconds. */
function complete<I extends DescMessage, O extends DescMessage>(
  method: DescMethodUnary<I, O>, input: MessageInitShape<I>,
): [MessageInitShape<I>, number] {
  const fields = reflect(method.input, create(method.input, input));
  const requestId = fields.fields.find((field) => field.name === "request_id");
  if (requestId && !fields.isSet(requestId)) {
    fields.set(requestId, crypto.randomUUID());
  }
  const message = fields.message as MessageInitShape<I> & { maxWait?: Duration };
  return [message, message.maxWait ? durationMs(message.maxWait) : 0];
}
