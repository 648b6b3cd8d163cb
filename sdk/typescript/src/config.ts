/** The gRPC service config, which all clients share. */

import type { DescMethod } from "@bufbuild/protobuf";
import { Code } from "@connectrpc/connect";
import { CartService } from "./gen/cartgrpc/v1/cart_service_pb.js";
import serviceConfig from "./gen/service_config.js";

export { serviceConfig };

export interface RetryPolicy {
  maxAttempts: number;
  initialBackoff: string;
  maxBackoff: string;
  backoffMultiplier: number;
  retryableStatusCodes: readonly string[];
}

export interface MethodConfig {
  name: readonly { service: string; method: string }[];
  timeout?: string;
  retryPolicy?: RetryPolicy;
}

/** Returns the entry for a method; an empty one if it has none. */
export function methodConfig(method: DescMethod): MethodConfig {
  const entries: readonly MethodConfig[] = serviceConfig.methodConfig;
  const isIts = (one: { service: string; method: string }) =>
    one.service === method.parent.typeName && one.method === method.name;
  return entries.find(({ name }) => name.some(isIts)) ?? { name: [] };
}

/**
 * Returns the policy by which this client repeats a method's calls; undefined if it must not. gRPC by itself may repeat
 * reads only. Mutations here always have a request_id, so the same policy is safe for them.
 */
export function retryPolicy(method: DescMethod): RetryPolicy | undefined {
  const hasRequestId = method.input.fields.some(({ name }) => name === "request_id");
  return methodConfig(hasRequestId ? CartService.method.getCart : method).retryPolicy;
}

/** Returns whether the policy names the code: `UNAVAILABLE` is Code.Unavailable. */
export function isRetryable(policy: RetryPolicy, code: Code): boolean {
  return policy.retryableStatusCodes.some((name) => name.replaceAll("_", "") === Code[code].toUpperCase());
}

/** Returns the longest delay after an attempt, which counts from 0. */
export function backoffMs(policy: RetryPolicy, attempt: number): number {
  return Math.min(toMs(policy.maxBackoff), toMs(policy.initialBackoff) * policy.backoffMultiplier ** Math.min(attempt, 10));
}

/** Returns the milliseconds of a duration such as `0.5s`. */
export function toMs(duration: string): number {
  return Number(duration.slice(0, -1)) * 1000;
}
