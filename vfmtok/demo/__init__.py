"""A web page to try a tokenizer and a generator: `vfmtok demo`."""
