"""Images in: LMDB records, transforms, order, loader, token cache. What users bring is the room ``sources``.

images         image_files (reading encoded images), ordered_pool (work spread over processes)
records        records, published_records (safe reading of pickled ones), dataset_folder (splits, verify, export),
               stats (vfmtok stats)
shards         shards (training from WebDataset shards), shard_index (where samples lie in one), shard_sources (what a
               path names), remote_shards (shards behind a URL)
training       order (which samples come next), transforms (crops), training_crop (by the name
               in a recipe), torchvision_crop (of evaluations), loader (batches)
codes          code_cache (a data set's ids in one array), latent_cache (its latents), cache_layout (both on the
               disk), views (the crops of an image that they keep), latent_statistics (mean and deviation of latents),
               published_codes (LlamaGen's folders of ids), published_latents (LightningDiT's and REG's),
               latent_export (the same, written)
"""
