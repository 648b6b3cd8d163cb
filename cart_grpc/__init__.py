"""A shopping-cart service over gRPC that reserves what is put into its carts."""
