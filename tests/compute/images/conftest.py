"""The probe guest's disk for the tests of images."""

from probe import probe_image as probe_image
