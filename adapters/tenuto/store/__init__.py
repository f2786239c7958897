"""The port to the table that holds lanes, with its in-memory twin and its DynamoDB driver.

Owns applying writes and reading items. Does not own what they mean (`tenuto.lane`).
"""
