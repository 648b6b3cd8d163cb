"""The subcommands of `cart-grpc`, one file for each group: arguments, the call, output.

No rules about carts, and no server: those are in the rooms below.
"""
