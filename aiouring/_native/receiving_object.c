/* The row of a receive that stays armed (_multishot.py), with what every chunk goes through: `arrived()` queues what
 * came and wakes the reader, and `take_first()` makes the lease of what is queued when the reader has run.
 *
 * A reader that is cancelled has taken nothing: the future it waits for says only that it may look. */
#include "objects.h"

static PyObject *receive_next(PyObject *self); /* see awaitables.c */

static PyMemberDef receive_members[] = {
    FIELD("_arrivals", RECEIVE_ARRIVALS), FIELD("_driver", RECEIVE_DRIVER), FIELD("group", RECEIVE_GROUP),
    FIELD("_early", RECEIVE_EARLY), FIELD("_ready", RECEIVE_READY), FIELD("taker", RECEIVE_TAKER),
    FIELD("_new_future", RECEIVE_NEW_FUTURE), FIELD("_high", RECEIVE_HIGH), FIELD("_low", RECEIVE_LOW),
    FIELD("_ticket", RECEIVE_TICKET), FIELD("armed", RECEIVE_ARMED), FIELD("over", RECEIVE_OVER),
    FIELD("_stopping", RECEIVE_STOPPING), FIELD("_direct", RECEIVE_DIRECT),
    {NULL, 0, 0, 0, NULL},
};

ROW_OF(receive, RECEIVE_FIELDS, RECEIVE_PLACES)

/* Tell whoever waits, or takes without waiting, that something is there. */
static int wake_reader(PyObject *self)
{
    PyObject *ready = AT(self, RECEIVE_READY);
    if (ready == Py_None) {
        PyObject *taker = AT(self, RECEIVE_TAKER);
        if (taker == Py_None)
            return 0;
        PyObject *driver = AT(self, RECEIVE_DRIVER);
        return is_a(driver, turns_type) ? tell(AT(driver, TURNS_TAKERS), name_append, taker, NULL) : -1;
    }
    if (POINTER(self, RECEIVE_TOLD) == ready)
        return 0;
    bool once = (PyObject *)Py_TYPE(ready) == future_type; /* others may want to be told again */
    int rc = resolve_future(ready, Py_None);
    if (rc == 0 && once && AT(self, RECEIVE_READY) == ready) /* else it is gone: whom that told has let go of it */
        POINTER(self, RECEIVE_TOLD) = ready;
    return rc;
}

/* Whether what came is the last that is queued: this step is taken again, after an interrupt. */
static bool queued_before(PyObject *arrivals, PyObject *result, PyObject *flags)
{
    Py_ssize_t count = PyList_Size(arrivals);
    PyObject *last = count > 0 ? PyList_GetItem(arrivals, count - 1) : NULL;
    return last && PyObject_RichCompareBool(PyTuple_GetItem(last, 0), result, Py_EQ) == 1 &&
           PyObject_RichCompareBool(PyTuple_GetItem(last, 1), flags, Py_EQ) == 1;
}

/* Queue a chunk.  The reader is woken first: nothing after that can be interrupted before it is queued. */
static int queue_chunk(PyObject *self, PyObject *result, PyObject *flags, bool more)
{
    PyObject *arrivals = AT(self, RECEIVE_ARRIVALS);
    Py_ssize_t count = PyList_Size(arrivals), high = PyLong_AsSsize_t(AT(self, RECEIVE_HIGH));
    if (PyErr_Occurred())
        return -1;
    if (more && count >= high && !is_true(self, RECEIVE_STOPPING)) { /* with this one it is above the high mark */
        set(self, RECEIVE_STOPPING, Py_True);
        if (tell(AT(self, RECEIVE_DRIVER), name_cancel_soon, self, NULL) < 0)
            return -1;
    }
    if (wake_reader(self) < 0)
        return -1;
    put(self, RECEIVE_TICKET, PyLong_FromLong(0)); /* it had its turn */
    if (queued_before(arrivals, result, flags))
        return 0;
    PyObject *arrival = PyTuple_Pack(2, result, flags);
    int rc = arrival ? PyList_Append(arrivals, arrival) : -1;
    Py_XDECREF(arrival);
    return rc;
}

static int receive_arrive(PyObject *self, int64_t result, int64_t flags)
{
    PyObject *length = PyLong_FromLongLong(result), *bits = PyLong_FromLongLong(flags);
    int rc = length && bits ? 0 : -1;
    bool chunk = result > 0 && flags & AU_CQE_F_BUFFER;
    if (rc == 0 && chunk)
        rc = queue_chunk(self, length, bits, flags & AU_CQE_F_MORE);
    if (rc == 0 && !(chunk && flags & AU_CQE_F_MORE))
        rc = tell(self, name__concluded, length, bits);
    Py_XDECREF(length);
    Py_XDECREF(bits);
    return rc;
}

static PyObject *receive_arrived(PyObject *self, PyObject *args)
{
    long long result, flags;
    if (!PyArg_ParseTuple(args, "LL", &result, &flags) || receive_arrive(self, result, flags) < 0)
        return NULL;
    return none();
}

/* What stands for an arrival in the reader's hands. */
static PyObject *chunk_of(PyObject *self, PyObject *arrival)
{
    PyObject *result = PyTuple_GetItem(arrival, 0), *bits = PyTuple_GetItem(arrival, 1);
    uint64_t flags = bits ? PyLong_AsUnsignedLongLong(bits) : 0;
    if (PyErr_Occurred())
        return NULL;
    if (!flags)
        return PyObject_CallMethodObjArgs(self, name__private, result, NULL);
    PyObject *number = PyLong_FromUnsignedLongLong(flags >> AU_CQE_BUFFER_SHIFT);
    PyObject *chunk = number ? new_lease(AT(self, RECEIVE_GROUP), number, result) : NULL;
    Py_XDECREF(number);
    return chunk;
}

/* The first of what is queued becomes the reader's.  It leaves the queue last: before that, nothing has been taken. */
static PyObject *take_first(PyObject *self)
{
    PyObject *arrivals = AT(self, RECEIVE_ARRIVALS);
    Py_ssize_t left = PyList_Size(arrivals) - 1, low = PyLong_AsSsize_t(AT(self, RECEIVE_LOW));
    if (PyErr_Occurred() || (!is_true(self, RECEIVE_ARMED) && left <= low && tell(self, name__arm, NULL, NULL) < 0))
        return NULL;
    PyObject *arrival = PyList_GetItem(arrivals, 0), *chunk = NULL;
    if (arrival) {
        Py_INCREF(arrival);
        chunk = chunk_of(self, arrival);
        if (chunk && PyList_SetSlice(arrivals, 0, 1, NULL) < 0)
            Py_CLEAR(chunk);
        Py_DECREF(arrival);
    }
    return chunk;
}

static PyMethodDef receive_methods[] = {
    {"arrived", receive_arrived, METH_VARARGS,
     "A completion of this request.  Taking this step twice, after an interrupt, does no harm."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot receive_slots[] = {
    ROW_SLOTS(receive),
    {Py_tp_methods, receive_methods},
    {Py_am_anext, receive_next},
    {0, NULL},
};

static PyType_Spec receive_spec = {"aiouring._rows.ReceivingRow", ROW_SIZE(RECEIVE_PLACES), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, receive_slots};
