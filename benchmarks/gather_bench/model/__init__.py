"""The cost model of `gather bench --model`: fitted to measured points, checked on others, asked about more ranks."""
