"""Out of Flink's stack traces, the operator is shown the Python error alone."""

from infra.flink_rest import python_error

# As Flink 2.3.0 reports a Python function's error; the Java lines are shortened.
RESTARTED = """org.apache.flink.runtime.taskmanager.AsynchronousException: Caught exception
\tat org.apache.flink.streaming.runtime.tasks.StreamTask.handleAsyncException(StreamTask.java:1177)
Caused by: java.lang.RuntimeException: Error while processing
\tat org.apache.flink.streaming.runtime.tasks.StreamTask.invoke(StreamTask.java:914)
Caused by: pemja.core.PythonException: <class 'jobs.flink_runtime.JobError'>: Traceback (most recent call last):
  File "jobs/flink_runtime.py", line 122, in process_element
    rows = self._process(*value)
infra.registry.RegistryError: schema registry at http://127.0.0.1:8082 does not answer

\tat jobs/flink_runtime.process_element(jobs/flink_runtime.py:125)
\tat pemja.core.object.PyIterator.next(Native Method)
\tat org.apache.flink.streaming.api.operators.python.embedded.Embedded.next(Embedded.java:40)
"""

STOPPED = """org.apache.flink.streaming.runtime.tasks.ExceptionInChainedOperatorException: Could not forward element
\tat org.apache.flink.streaming.runtime.tasks.ChainingOutput.pushToOperator(ChainingOutput.java:92)
Caused by: io.streambank.flink.KernelStoppedException: Traceback (most recent call last):
  File "kernel.py", line 50, in apply
ValueError: event 7 cannot be counted

The above exception was the direct cause of the following exception:

pipelines.kernel.InvariantBroken: the counter met its breaking code

\tat io.streambank.flink.FrameSerializationSchema.serialize(FrameSerializationSchema.java:27)
\t... 19 more
"""

JAVA_ONLY = """org.apache.flink.runtime.jobmanager.scheduler.NoResourceAvailableException: no slots
\tat org.apache.flink.runtime.Some.method(Some.java:1)
"""


def test_the_traceback_of_a_python_function_is_shown_without_java():
    assert python_error(RESTARTED) == (
        "Traceback (most recent call last):\n"
        '  File "jobs/flink_runtime.py", line 122, in process_element\n'
        "    rows = self._process(*value)\n"
        "infra.registry.RegistryError: schema registry at http://127.0.0.1:8082 does not answer"
    )


def test_the_causes_of_a_broken_invariant_are_kept():
    shown = python_error(STOPPED)
    assert shown is not None
    assert shown.startswith("Traceback (most recent call last):")
    assert "ValueError: event 7 cannot be counted" in shown
    assert shown.endswith("pipelines.kernel.InvariantBroken: the counter met its breaking code")


def test_an_error_without_python_has_none():
    assert python_error(JAVA_ONLY) is None
