"""Between our parameter trees and other people's files: one table per network drives import, export, sharding."""
