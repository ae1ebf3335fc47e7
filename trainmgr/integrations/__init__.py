"""Adapters for frameworks, on the side of the training script. Imports workload.

Each finds what a framework lets be changed and declares it, and knows how its state is saved and loaded. A script gets
them through a method of `Workload`, which imports the adapter then: nobody pays for a framework that is not used.
"""
