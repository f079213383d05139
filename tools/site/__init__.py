"""The documentation's site: what MkDocs builds of docs/ and of the files beside it."""
