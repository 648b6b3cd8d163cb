/** The details of errors: google.rpc.Status. */

import { durationMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import {
  BadRequestSchema, ErrorInfoSchema, PreconditionFailureSchema, QuotaFailureSchema, RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.js";

export interface ErrorDetails {
  /** In UPPER_SNAKE_CASE, such as CART_NOT_FOUND. Empty if no server of carts made the error. */
  reason: string;
  /** Every variable part of the message. */
  metadata: Record<string, string>;
  /** The wrong fields of the request, each with a path such as `item.quantity`. */
  fields: { field: string; reason: string; description: string }[];
  /** The preconditions or quotas that the call violates. */
  violations: { type: string; subject: string; description: string }[];
  /** How many milliseconds to wait before a repetition, if the server asks for it. */
  retryAfterMs?: number;
}

/** Returns the details of what a call has thrown. All of them are empty if it has none. */
export function errorDetails(thrown: unknown): ErrorDetails {
  const error = withPlainTypes(ConnectError.from(thrown));
  const [info] = error.findDetails(ErrorInfoSchema);
  const [retry] = error.findDetails(RetryInfoSchema);
  const delay = retry?.retryDelay;
  return {
    reason: info?.reason ?? "",
    metadata: { ...info?.metadata },
    fields: error.findDetails(BadRequestSchema).flatMap((request) =>
      request.fieldViolations.map(({ field, reason, description }) => ({ field, reason, description }))),
    violations: [
      ...error.findDetails(PreconditionFailureSchema).flatMap(({ violations }) =>
        violations.map(({ type, subject, description }) => ({ type, subject, description }))),
      ...error.findDetails(QuotaFailureSchema).flatMap(({ violations }) =>
        violations.map(({ subject, description }) => ({ type: "", subject, description }))),
    ],
    ...(delay && { retryAfterMs: Math.max(0, durationMs(delay)) }),
  };
}

/** Envoy's bridge for Connect leaves the prefix of a type URL in the types of details. */
function withPlainTypes(error: ConnectError): ConnectError {
  const plain = new ConnectError(error.rawMessage, error.code);
  plain.details = error.details.map((detail) =>
    "type" in detail ? { ...detail, type: detail.type.slice(detail.type.lastIndexOf("/") + 1) } : detail);
  return plain;
}
