from tests import guard

guard.install()
