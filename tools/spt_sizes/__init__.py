"""What tools/table4.py reads of SPT's masks and estimates from them."""
