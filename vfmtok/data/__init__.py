"""Images in: any folder or archive to LMDB records, transforms, order, loader, token cache."""
