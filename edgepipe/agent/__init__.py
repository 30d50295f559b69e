"""All that ships to a board: standard library, schema, codec, errors; Python 3.8 to 3.14; packed as one zipapp."""
