"""Coupled channels: which channels of which layers live or die together, and removing them.

Labels flow through the graph (``flow.py``, with rules in ``rules.py``, ``moves.py`` and ``recurrent.py``);
channels tied by them are a unit (``units.py``). To remove units the rules run again on the labels that stay
(``removal.py``), which gives every new size and slice (``surgery.py``).
"""

from onnxcompress.channels.find import Channels as Channels
from onnxcompress.channels.find import Plan as Plan
from onnxcompress.channels.find import find as find
from onnxcompress.channels.records import Span as Span
from onnxcompress.channels.records import record as record
from onnxcompress.channels.records import spans as spans
from onnxcompress.channels.units import Family as Family
from onnxcompress.channels.units import Units as Units
