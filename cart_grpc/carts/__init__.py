"""What a cart is and what each call does to it: values and pure rules. Standard library only.

No SQL, no protobuf and no network belong here.
"""
