"""What folders, archives, shards and tables of images hold: found, understood and read, one file at a time.

files          folders (the one walk), archives (zips and tars), files (what may be an image; reading by place), packed
               (long lists of them in little memory), scratch (where compressed tars are unpacked)
containers     given (what the user named), containers (the images of each), webdataset, parquet,
               arrow_files (what `datasets.save_to_disk` writes)
meaning        splits, class_folders, classes, label_files, imagenet
all together   listing, table (the listing as text)
"""
