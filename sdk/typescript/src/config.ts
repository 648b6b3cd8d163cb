/** The gRPC service config, which all clients share. */

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
export function methodConfig(service: string, method: string): MethodConfig {
  const entries: readonly MethodConfig[] = serviceConfig.methodConfig;
  return entries.find(({ name }) => name.some((one) => one.service === service && one.method === method)) ?? { name: [] };
}

/** Returns the longest delay after an attempt, which counts from 0. */
export function backoffMs(policy: RetryPolicy, attempt: number): number {
  return Math.min(toMs(policy.maxBackoff), toMs(policy.initialBackoff) * policy.backoffMultiplier ** Math.min(attempt, 10));
}

/** Returns the milliseconds of a duration such as `0.5s`. */
export function toMs(duration: string): number {
  return Number(duration.slice(0, -1)) * 1000;
}
