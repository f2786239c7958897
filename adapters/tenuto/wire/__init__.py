"""A small AWS client: signed HTTP/1.1 requests over connections that stay open.

Owns signing, the bytes of requests and answers, and the connections, blocking and asyncio. Does not own where requests
go and under which credentials (botocore's business, see `tenuto.store.aws_client`), nor what an error means to its
caller. `http1`, `sigv4` and `services` do no I/O; `blocking` and `aio` add it. Nothing of botocore is imported here.
"""
