"""Stores elsewhere: copies to and from folders, zip files, web servers and buckets. May import all of `stores`."""
