# libfastscnn, shared and static, with headers, a CMake package and a pkg-config file.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

foreach(kind SHARED STATIC)
  set(name fastscnn)
  if(kind STREQUAL "STATIC")
    set(name fastscnn_static)
  endif()
  add_library(${name} ${kind} csrc/cpu/c_api.cpp ${KERNEL_OBJECTS})
  add_library(fastscnn::${name} ALIAS ${name})
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/csrc/include>
                                            $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_compile_features(${name} INTERFACE cxx_std_17)
  target_compile_options(${name} PRIVATE -O2 ${SANITIZE})
  target_link_libraries(${name} PRIVATE Threads::Threads)
  set_target_properties(${name} PROPERTIES OUTPUT_NAME fastscnn VERSION ${PROJECT_VERSION}
                                           SOVERSION 1) # FASTSCNN_ABI_VERSION
endforeach()
if(NOT FASTSCNN_SANITIZE)
  # Nothing but the C functions is to be seen, not the templates of the C++ library either.
  file(WRITE ${PROJECT_BINARY_DIR}/fastscnn.map "{ global: fastscnn_*; local: *; };\n")
  target_link_options(fastscnn PRIVATE -Wl,--version-script=${PROJECT_BINARY_DIR}/fastscnn.map
                                       -Wl,--no-undefined $<$<CONFIG:Release>:-Wl,-s>)
endif()

set(PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/fastscnn)
install(TARGETS fastscnn fastscnn_static EXPORT fastscnn)
install(DIRECTORY csrc/include/fastscnn DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT fastscnn FILE fastscnn-targets.cmake NAMESPACE fastscnn:: DESTINATION ${PACKAGE_DIR})
file(WRITE ${PROJECT_BINARY_DIR}/fastscnn-config.cmake
     "include(CMakeFindDependencyMacro)\n"
     "set(THREADS_PREFER_PTHREAD_FLAG ON)\n"
     "find_dependency(Threads)\n"
     "include(\${CMAKE_CURRENT_LIST_DIR}/fastscnn-targets.cmake)\n")
write_basic_package_version_file(${PROJECT_BINARY_DIR}/fastscnn-config-version.cmake
                                 COMPATIBILITY SameMinorVersion)
# Relative, so that what is installed may be moved; LIBDIR may have several folders.
file(RELATIVE_PATH TO_PREFIX ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
file(GENERATE OUTPUT ${PROJECT_BINARY_DIR}/fastscnn.pc CONTENT
     "prefix=\${pcfiledir}/${TO_PREFIX}
includedir=\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}
libdir=\${prefix}/${CMAKE_INSTALL_LIBDIR}

Name: fastscnn
Description: Fast-SCNN semantic segmentation on CPUs
Version: ${PROJECT_VERSION}
Cflags: -I\${includedir}
Libs: -L\${libdir} -lfastscnn
Libs.private: -lstdc++ -lm -pthread
")
install(FILES ${PROJECT_BINARY_DIR}/fastscnn-config.cmake
              ${PROJECT_BINARY_DIR}/fastscnn-config-version.cmake DESTINATION ${PACKAGE_DIR})
install(FILES ${PROJECT_BINARY_DIR}/fastscnn.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
