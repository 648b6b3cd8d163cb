"""One module for each revision, oldest first. Expand before contract: the previous release must run on the result."""
