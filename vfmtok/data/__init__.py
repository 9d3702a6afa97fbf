"""Images in: LMDB records, transforms, order, loader, token cache. What users bring is the room ``sources``.

images         image_files (reading encoded images), ordered_pool (work spread over processes)
records        records, published_records (safe reading of pickled ones), dataset_folder (splits, verify, export),
               stats (vfmtok stats)
training       order (which samples come next), transforms (crops), loader (batches)
codes          code_cache (a data set's codes in one array)
"""
