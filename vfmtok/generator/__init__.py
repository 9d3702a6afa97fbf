"""The generator: class labels -> GPT -> token sampling -> ids, which a tokenizer turns into images."""
