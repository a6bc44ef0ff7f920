/* A file system that refuses: calls on paths that contain ODD_PATH give the error number of ODD_<call>, if it is set.
   Calls: LOCK (flock, and fcntl's locks), OPEN, READ, WRITE, MMAP. Read anew at every call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int odd(const char *call, const char *path) {
    const char *part = getenv("ODD_PATH"), *number = getenv(call);
    if (!part || !number || !path || !strstr(path, part)) return 0;
    errno = atoi(number);
    return 1;
}

static int odd_file(const char *call, int file) {
    char link[64], path[4096];
    if (!getenv(call)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    return odd(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int flock(int file, int operation) {
    return odd_file("ODD_LOCK", file) ? -1 : ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(file, operation);
}

#define FCNTL(name)                                                                                                  \
    int name(int file, int command, ...) {                                                                           \
        va_list rest;                                                                                                \
        va_start(rest, command);                                                                                     \
        void *argument = va_arg(rest, void *);                                                                       \
        va_end(rest);                                                                                                \
        int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW;  \
        return locks && odd_file("ODD_LOCK", file)                                                                   \
                   ? -1                                                                                              \
                   : ((int (*)(int, int, void *))dlsym(RTLD_NEXT, #name))(file, command, argument);                  \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

#define OPEN(name)                                                                                                   \
    int name(const char *path, int flags, ...) {                                                                     \
        va_list rest;                                                                                                \
        va_start(rest, flags);                                                                                       \
        int mode = va_arg(rest, int);                                                                                \
        va_end(rest);                                                                                                \
        return odd("ODD_OPEN", path) ? -1 : ((int (*)(const char *, int, int))dlsym(RTLD_NEXT, #name))(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

ssize_t read(int file, void *into, size_t size) {
    return odd_file("ODD_READ", file) ? -1 : REAL(read)(file, into, size);
}

ssize_t pread(int file, void *into, size_t size, off_t at) {
    return odd_file("ODD_READ", file) ? -1 : REAL(pread)(file, into, size, at);
}

ssize_t pread64(int file, void *into, size_t size, off64_t at) {
    return odd_file("ODD_READ", file) ? -1 : REAL(pread64)(file, into, size, at);
}

ssize_t write(int file, const void *from, size_t size) {
    return odd_file("ODD_WRITE", file) ? -1 : REAL(write)(file, from, size);
}

void *mmap(void *at, size_t size, int protection, int flags, int file, off_t from) {
    return file >= 0 && odd_file("ODD_MMAP", file) ? MAP_FAILED : REAL(mmap)(at, size, protection, flags, file, from);
}

void *mmap64(void *at, size_t size, int protection, int flags, int file, off64_t from) {
    return file >= 0 && odd_file("ODD_MMAP", file) ? MAP_FAILED : REAL(mmap64)(at, size, protection, flags, file, from);
}
