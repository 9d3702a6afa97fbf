"""Parts shared by the tokenizer and the generator."""
