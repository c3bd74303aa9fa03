"""`gather bench --only-codecs`: encode and decode in one process, without ranks and transports."""
