"""Images in: any folder or archive to LMDB records, transforms, order, loader, token cache.

prepare        prepare (vfmtok prepare), sources, source_files, webdataset, parquet, scratch, image_files, ordered_pool
records        records, published_records, dataset_folder (splits, verify, export), stats (vfmtok stats)
training       order (which samples come next), transforms (crops), loader (batches)
tokens         codes (vfmtok codes), code_cache
numbers        psnr_and_usage; pictures: contact_sheet
"""
