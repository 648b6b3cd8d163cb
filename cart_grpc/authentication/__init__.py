"""The identities of callers, which tokens and certificates prove.

Which identity may call which method is in `rpc.permissions`. No cart, no SQL and no gRPC server here.
"""
