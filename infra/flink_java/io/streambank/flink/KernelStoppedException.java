package io.streambank.flink;

import org.apache.flink.runtime.throwable.ThrowableAnnotation;
import org.apache.flink.runtime.throwable.ThrowableType;

/** The kernel's state contradicts itself: Flink fails the job at once, whatever its restart strategy. */
@ThrowableAnnotation(ThrowableType.NonRecoverableError)
public final class KernelStoppedException extends RuntimeException {
    private static final long serialVersionUID = 1L;

    /** @param traceback the Python traceback, with its causes. */
    public KernelStoppedException(String traceback) {
        super(traceback);
    }
}
