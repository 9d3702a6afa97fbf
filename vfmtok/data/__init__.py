"""Images in: any folder or archive to LMDB records, transforms, order, loader, token cache.

sources/       what is in folders, archives and shards; image_files: reading images
records        records, published_records (safe reading of pickled ones), dataset_folder (splits, verify, export),
               stats (vfmtok stats)
training       order (which samples come next), transforms (crops), loader (batches)
codes          code_cache (a data set's codes in one array)
"""
