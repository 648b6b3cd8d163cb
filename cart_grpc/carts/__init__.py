"""What a cart is and what each call does to it: values and pure rules. Standard library only.

Nothing here knows SQL, protobuf or a network.
"""
