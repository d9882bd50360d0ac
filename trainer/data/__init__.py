"""Labelled images by name or by form: CoOp's and torchvision's layouts, class folders, CSV, tar shards; few-shot parts and merged sets."""
