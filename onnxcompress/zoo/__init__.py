"""Many models through many recipes: jobs, each in a process of its own, on any executor."""

from onnxcompress.zoo.jobs import Job as Job
from onnxcompress.zoo.jobs import Outcome as Outcome
from onnxcompress.zoo.many import compress_many as compress_many
