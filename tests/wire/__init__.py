"""The AWS client by itself: bytes, signatures, and connections to scripted servers."""
