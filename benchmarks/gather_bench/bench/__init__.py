"""`gather bench`: codecs, transports and peers on the same payloads, in the same run."""
