/* The row of a connection's sending half (_sending.py), with what every message goes through: a lent buffer of the
 * group, or a few bytes, go to the core; everything else is for Python to look at. */
#include "objects.h"

static PyMemberDef send_members[] = {
    FIXED("raw", SEND_RAW), FIXED("_driver", SEND_DRIVER), FIXED("_group", SEND_GROUP),
    FIXED("_raw_group", SEND_RAW_GROUP), FIXED("_buffer_type", SEND_BUFFER_TYPE),
    {NULL, 0, 0, 0, NULL},
};

ROW_OF(send, SEND_FIELDS, SEND_PLACES)

/* `raw` and `raw_group` are what the addresses are of: they are kept as long as this. */
static int send_init(PyObject *self, PyObject *args, PyObject *Py_UNUSED(named))
{
    PyObject *driver, *group, *raw, *raw_group, *buffer_type;
    unsigned long long sender_address, group_address;
    if (!PyArg_ParseTuple(args, "O!OOKOKO!", turns_type, &driver, &group, &raw, &sender_address, &raw_group,
                          &group_address, &PyType_Type, &buffer_type))
        return -1;
    set(self, SEND_DRIVER, driver);
    set(self, SEND_GROUP, group);
    set(self, SEND_RAW, raw);
    set(self, SEND_RAW_GROUP, raw_group);
    set(self, SEND_BUFFER_TYPE, buffer_type);
    POINTER(self, SEND_SENDER) = (void *)(uintptr_t)sender_address;
    POINTER(self, SEND_GROUP_POINTER) = (void *)(uintptr_t)group_address;
    return 0;
}

/* The core's sender, unless this is half made, or being collected. */
static au_sender *sender_of(PyObject *self)
{
    au_sender *sender = POINTER(self, SEND_SENDER);
    if (!sender)
        PyErr_SetString(PyExc_RuntimeError, "this sends nothing any more");
    return sender;
}

/* Something was queued: a turn is to follow. */
static int ask_for_turn(PyObject *self)
{
    return schedule(AT(self, SEND_DRIVER));
}

static int refuse(PyObject *self, int code, PyObject *data)
{
    PyObject *number = PyLong_FromLong(code);
    if (number)
        tell(self, name__refuse, number, data); /* raises */
    Py_XDECREF(number);
    return -1;
}

/* Returns whether too much is queued now, or -1 where it raised. */
static int write_bytes(PyObject *self, PyObject *data)
{
    Py_ssize_t length = PyBytes_Size(data);
    if (length <= 0)
        return length < 0 ? -1 : 0;
    if (length > AU_COPY_MAX) {
        PyObject *crowded = PyObject_CallMethodObjArgs(self, name__write_kept, data, NULL);
        int rc = crowded ? PyObject_IsTrue(crowded) : -1;
        Py_XDECREF(crowded);
        return rc;
    }
    int code = au_sender_add_copy(sender_of(self), PyBytes_AsString(data), (uint64_t)length);
    if (code < 0)
        return refuse(self, code, Py_None);
    return ask_for_turn(self) < 0 ? -1 : code;
}

/* A lent buffer of the group is handed over.  (A message is not: its payload begins somewhere inside the buffer.) */
static int write_lease(PyObject *self, PyObject *data)
{
    if (is_true(data, LEASE_ENDED) || AT(data, LEASE_PINS) != zero || !is_none(data, LEASE_VIEW))
        return tell(self, name__write_lease, data, NULL);
    uint64_t number = PyLong_AsUnsignedLongLong(AT(data, LEASE_NUMBER));
    uint64_t length = PyLong_AsUnsignedLongLong(AT(data, LEASE_LENGTH));
    if (PyErr_Occurred())
        return -1;
    set(data, LEASE_ENDED, Py_True);
    int code = au_sender_add_buffer(POINTER(self, SEND_SENDER), POINTER(self, SEND_GROUP_POINTER), number,
                                    (uint32_t)length);
    return code < 0 ? refuse(self, code, data) : ask_for_turn(self);
}

static PyObject *send_write(PyObject *self, PyObject *data)
{
    int rc;
    if (!sender_of(self))
        return NULL;
    if ((PyObject *)Py_TYPE(data) == AT(self, SEND_BUFFER_TYPE) && AT(data, LEASE_HOME) == AT(self, SEND_GROUP))
        rc = write_lease(self, data);
    else if (PyBytes_Check(data))
        rc = write_bytes(self, data);
    else
        rc = tell(self, name__write_memory, data, NULL);
    if (rc < 0)
        return NULL;
    return none();
}

static PyObject *send_write_bytes(PyObject *self, PyObject *data)
{
    int crowded = sender_of(self) ? write_bytes(self, data) : -1;
    return crowded < 0 ? NULL : PyBool_FromLong(crowded);
}

static PyObject *send_drain(PyObject *self, PyObject *Py_UNUSED(none))
{
    au_sender *sender = sender_of(self);
    if (!sender)
        return NULL;
    if (sender->crowded)
        return PyObject_CallMethodObjArgs(self, name__drain, NULL);
    Py_INCREF(done);
    return done;
}

static PyMethodDef send_methods[] = {
    {"write", send_write, METH_O,
     "Queue `data` behind what is queued.\n\n"
     "A buffer of the group, or a part of one, goes to the core by its number."},
    {"write_bytes", send_write_bytes, METH_O, "The same for `bytes`; returns whether too much is queued now."},
    {"drain", send_drain, METH_NOARGS, "Wait while too much is queued; raises what ended the sending."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot send_slots[] = {
    ROW_SLOTS(send),
    {Py_tp_init, send_init},
    {Py_tp_methods, send_methods},
    {0, NULL},
};

static PyType_Spec send_spec = {"aiouring._rows.SendingRow", ROW_SIZE(SEND_PLACES), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, send_slots};
