"""The HTTP face of the broker. It only translates: rules live in `megaphone.core`."""
