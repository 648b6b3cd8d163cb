"""One module a revision, oldest first. Expand before you contract: the release before must run on the result."""
