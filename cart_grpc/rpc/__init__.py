"""gRPC in: requests become checked values, results become messages, refusals become google.rpc.Status.

No SQL and no rules about carts.
"""
